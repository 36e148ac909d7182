"""The distillation as a Kubeflow pipeline: wired, compiled, run here, submitted, scheduled."""
