"""One batch of one cell: the attack proposes, the referee alone says what is adversarial."""
