"""One Kubeflow Pipelines component a stage: parameters and artifacts in, one call of the stage, artifacts out."""
