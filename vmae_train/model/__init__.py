"""The model: blocks and geometry (vit), the two models (videomae), targets (loss), files (load)."""
