"""Evaluation: a task, the systems that do it, their score, side by side.

Authors
 * The blsp_plugin team 2026
"""
