-- Who sits in which contest, and who dropped out of it. docs/proctor.md has the whole story.
-- Ids are compared to the byte (utf8mb4_bin), as Chatgate does, but for spaces at their end, which this collation overlooks: where
-- names may end in one, take utf8mb4_0900_bin (MySQL) or utf8mb4_nopad_bin (MariaDB).

CREATE TABLE contest_partner (
  user_id     VARCHAR(128) NOT NULL,
  contest_id  VARCHAR(64)  NOT NULL,
  is_disabled TINYINT      NOT NULL DEFAULT 0,
  dropped_at  DATETIME(3)  NULL,               -- UTC
  drop_cause  VARCHAR(32)  NULL,
  PRIMARY KEY (user_id, contest_id)
) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The open connections of participants: written by the sink, read by it alone.
CREATE TABLE contest_connection (
  conn        VARCHAR(64)  NOT NULL PRIMARY KEY,
  user_id     VARCHAR(128) NOT NULL,
  contest_id  VARCHAR(64)  NOT NULL,
  KEY (user_id, contest_id)
) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
