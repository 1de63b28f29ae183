"""Equivariant policies for Stable-Baselines3, one module an algorithm, under SB3's own policy names."""
