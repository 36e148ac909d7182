"""The names of a distilled set's files, for those who handle them without reading tensors."""

TENSORS, RECORD, PREVIEW = "distilled.safetensors", "distilled.json", "preview.png"
