"""Scores per patient, and statistics over patients."""
