"""Models on disk: the native, official and Hugging Face formats, and conversion between them."""
