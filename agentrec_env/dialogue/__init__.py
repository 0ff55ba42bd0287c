"""A user and a recommender who talk: the user wants one item of the pool, the recommender may ask about it.

`core.Dialogue` is the one implementation; `agentrec_env.multi_agent` shows it to PettingZoo, `env` to Gymnasium with
the user folded in. `redaction` says what may not pass between the two, `prompts` holds every text that they read.
"""
