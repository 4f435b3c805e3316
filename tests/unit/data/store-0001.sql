-- A store as schema 0001 left it: mappings, events, a session, what the file said.
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL,
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE deleted_mapping (
	name VARCHAR NOT NULL,
	generation INTEGER NOT NULL,
	PRIMARY KEY (name)
);
INSERT INTO "deleted_mapping" VALUES('gone',1);
CREATE TABLE event (
	id INTEGER NOT NULL,
	at DATETIME NOT NULL,
	actor VARCHAR NOT NULL,
	action VARCHAR NOT NULL,
	mapping VARCHAR NOT NULL,
	detail JSON NOT NULL,
	PRIMARY KEY (id)
);
INSERT INTO "event" VALUES(1,'2026-11-24 23:25:38.136828','file','create','plant','{"generation": 1}');
INSERT INTO "event" VALUES(2,'2026-11-24 23:25:38.153684','api','create','möbel/1','{"generation": 1}');
INSERT INTO "event" VALUES(3,'2026-11-24 23:25:38.158074','api','create','gone','{"generation": 1}');
INSERT INTO "event" VALUES(4,'2026-11-24 23:25:38.160773','api','delete','gone','{"client_ids": ["base-gone"], "generation": 1}');
INSERT INTO "event" VALUES(5,'2026-11-24 23:25:38.181553','api','pause','plant','{"generation": 2}');
CREATE TABLE file_entry (
	name VARCHAR NOT NULL,
	digest VARCHAR NOT NULL,
	PRIMARY KEY (name)
);
INSERT INTO "file_entry" VALUES('plant','d1');
CREATE TABLE heartbeat (
	id INTEGER NOT NULL,
	at DATETIME NOT NULL,
	PRIMARY KEY (id)
);
INSERT INTO "heartbeat" VALUES(1,'2026-11-24 23:25:38.114756');
CREATE TABLE mapping (
	name VARCHAR NOT NULL,
	spec JSON NOT NULL,
	paused BOOLEAN NOT NULL,
	generation INTEGER NOT NULL,
	origin VARCHAR NOT NULL,
	created_at DATETIME NOT NULL,
	updated_at DATETIME NOT NULL,
	PRIMARY KEY (name)
);
INSERT INTO "mapping" VALUES('plant','{"mqtt": {"topic": ["plant/#"], "qos": 2, "client_id": null, "receive_maximum": 65534}, "kafka": {"topic": "plant_data", "key": "{topic}", "headers": {"a": "{topic}"}}, "wrap_as_json": false, "on_poison": "stop", "dead_letter_topic": null, "buffer_bytes": 33554432}',1,2,'file','2026-11-24 23:25:38.133176','2026-11-24 23:25:38.175373');
INSERT INTO "mapping" VALUES('möbel/1','{"mqtt": {"topic": ["plant/#"], "qos": 2, "client_id": null, "receive_maximum": 65534}, "kafka": {"topic": "plant_data", "key": "{topic}", "headers": {"a": "{topic}"}}, "wrap_as_json": false, "on_poison": "stop", "dead_letter_topic": null, "buffer_bytes": 33554432}',1,1,'api','2026-11-24 23:25:38.152637','2026-11-24 23:25:38.152637');
CREATE TABLE session (
	client_id VARCHAR NOT NULL,
	mapping VARCHAR NOT NULL,
	protocol VARCHAR,
	subscriptions JSON NOT NULL,
	established BOOLEAN NOT NULL,
	held_qos2 BOOLEAN NOT NULL,
	removal_pending BOOLEAN NOT NULL,
	clean_start BOOLEAN NOT NULL,
	last_identifier INTEGER NOT NULL,
	PRIMARY KEY (client_id)
);
INSERT INTO "session" VALUES('base-plant','plant','5','[["plant/#", 2, 1, 2]]',1,1,0,0,1);
CREATE INDEX ix_session_mapping ON session (mapping);
COMMIT;
