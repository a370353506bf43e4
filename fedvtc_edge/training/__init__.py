"""The three phases of a client's round: supervised, painting, fine-tuning."""
