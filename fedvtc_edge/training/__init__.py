"""The three phases of a client's round: supervised, decoder training, fine-tuning."""
