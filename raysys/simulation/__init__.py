"""Shoppers that are simulated: what they like is known, so what a shop does with it can be told."""

from raysys.simulation.shoppers import Memory, Reaction, Shoppers, ShopperSettings

__all__ = ["Memory", "Reaction", "ShopperSettings", "Shoppers"]
