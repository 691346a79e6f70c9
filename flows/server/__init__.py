"""What Martlet has on a Prefect server: its pool, deployments and automations, and what its workers say."""
