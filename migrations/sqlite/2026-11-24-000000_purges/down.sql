DROP INDEX actions_ended;
DROP TABLE departures;
DROP TABLE purges;
