"""Running programs: loader, simulator, timing, energy and checks. Imports neither compiler nor dialects."""
