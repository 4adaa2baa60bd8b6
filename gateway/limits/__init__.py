"""What may pass: the rules, where their counts are kept, and what holds while those are away."""
