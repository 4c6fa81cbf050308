"""Models on the Hugging Face Hub: brought from there, and published with a card."""
