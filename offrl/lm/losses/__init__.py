"""Losses of language-model methods: pure functions of tensors that need torch alone.

A control trajectory is a sequence of log-probabilities as well, so agents use them too.
"""
