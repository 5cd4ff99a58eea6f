DROP INDEX actions_ended;
DROP TABLE purges;
