"""Reinforcement learning over arrays: rewards, algorithms, alarms."""
