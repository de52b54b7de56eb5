// Package keyspace names everything Chatgate keeps in Redis.
//
// It owns the partition of an address, the group a script call may touch, every
// key and channel name, and the Lua fragments that more than one script uses.
//
// It leaves to others what the keys hold: presence and router own the scripts,
// and docs/redis-model.md describes the values.
//
// Goroutines: none. Locks: none. The package is pure; nothing here speaks to Redis.
package keyspace
