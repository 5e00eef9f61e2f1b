"""The JSON-lines record and MLflow."""
