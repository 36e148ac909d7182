"""MLflow: every run browsable, every distilled set a version with a champion.

The command writes what happens to a journal on disk and never waits for MLflow; a process of its own, the only one
that imports it unless the run starts from a registered set, sends the journal on. So a server that is slow or gone
costs a run nothing, and what could not be sent is sent by the next command. Results are recorded from what lies in the
store, so a figure is the same whether it was seen live or found done.
"""
