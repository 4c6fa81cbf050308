"""What Blossom attention is measured against: other attentions, and models built of them."""
