"""Packages of the distribution: bljust_jax, and configs/ installed as bljust_jax/configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["bljust_jax", "bljust_jax.*"]), "bljust_jax.configs"],
    package_dir={"bljust_jax.configs": "configs"},
)
