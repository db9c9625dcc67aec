"""Packages of the distribution: bljust_jax, and configs/ installed as bljust_jax/configs."""

from setuptools import find_packages, setup

CONFIGS = {"bljust_jax.configs": "configs", "bljust_jax.configs.compare": "configs/compare"}

setup(
    packages=[*find_packages(include=["bljust_jax", "bljust_jax.*"]), *CONFIGS],
    package_dir=CONFIGS,
)
