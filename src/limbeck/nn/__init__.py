"""Encoders and students, and a network as a pure function of one flat parameter vector."""
