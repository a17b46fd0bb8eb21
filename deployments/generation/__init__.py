"""From what a dialect asks of a model to the reply: prompts, constraints, choices, log probabilities."""
