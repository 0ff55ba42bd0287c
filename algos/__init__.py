"""Training algorithms for recommender agents: list-wise GRPO, PPR, PPO and their learner.

Empty for now: the environment and the agents that this package trains come first, and it imports from both.
"""
