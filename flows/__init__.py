"""When and where stages run: order, retries, workers, schedules. The only room that imports Prefect."""
