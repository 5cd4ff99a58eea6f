DROP INDEX actions_unresolved;
