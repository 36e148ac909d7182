"""The Kubernetes operator: Distillations and ScheduledDistillations, run as they say."""
