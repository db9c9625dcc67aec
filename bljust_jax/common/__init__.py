"""Errors, command lines, console output, plug-ins, trees and the config schema."""
