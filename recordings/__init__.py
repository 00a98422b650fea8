"""Training data: downloads, rendering, inspection, splits and crops, the Hugging Face Hub."""
