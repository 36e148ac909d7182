"""Self-supervised learning of the teacher: views, objectives, and encoders trained elsewhere."""
