"""Training algorithms for recommender agents: supervised warm start, list-wise GRPO, PPO, progressive preference
refinement, DPO, and the learner they share.

`algos.learner` owns the loop, `algos.algorithm` says what it asks of an algorithm.
"""
