"""What a trained model is used for: row 20 of the data's way."""
