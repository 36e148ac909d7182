"""How distilled sets are judged: protocol, baselines, probe, scores, comparison (stage 7 of the method).

`protocol` draws labels and chooses rates and steps on held-out labels, `baselines` gives what each method pre-trains
on, `probe` fits the linear probe, `scores` holds the figures, `comparison` decides about the champion.
"""
