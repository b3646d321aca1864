"""The base model, its adapters, and computing with them."""
