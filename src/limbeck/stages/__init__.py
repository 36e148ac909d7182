"""The stages: one module each, each with one public function that turns its inputs' folders into its own.

A stage imports from data, nn, ssl, matching and store, never from another stage; `graph` says how they connect.
"""
