package protocol

// The names of limits, as `limit` in an answer has them. Those that an operator sets are called like the setting, without its group. What
// each means is in Limits.
const (
	LimitConnectRate          = "connect-rate"
	LimitConnectRatePerIP     = "connect-rate-per-ip"
	LimitMaxConnections       = "max-connections"
	LimitConnectionsPerUser   = "connections-per-user"
	LimitDeviceClasses        = "device-classes"
	LimitFrameRate            = "frame-rate"
	LimitByteRate             = "byte-rate"
	LimitMessageRate          = "message-rate"
	LimitNewAddresses         = "new-addresses"
	LimitRoomsPerConnection   = "rooms-per-connection"
	LimitWatchesPerConnection = "watches-per-connection"
	LimitRefreshRate          = "refresh-rate"
	LimitInFlight             = "in-flight"
	LimitFrameBytes           = "frame-bytes"
	LimitOutboxBytes          = "outbox-bytes"
	LimitOutboxFrames         = "outbox-frames"
	LimitMeta                 = "meta"
	LimitUsers                = "users"
)

// LimitInfo is one row of the table of limits.
type LimitInfo struct {
	Name    string
	Setting bool // the operator sets it: limits.<name>
	Meaning string
	Answer  string // what whoever exceeds it is told
	Again   string // when to try again
}

// Limits is the table of limits: docs are generated from it.
var Limits = [...]LimitInfo{
	{LimitConnectRate, true, "Handshakes a second on this gateway.", "503 before the upgrade", "`Retry-After`, `retryAfterMs`"},
	{LimitConnectRatePerIP, true, "Handshakes a second from one client address.", "503 before the upgrade", "`Retry-After`, `retryAfterMs`"},
	{LimitMaxConnections, true, "Connections at a time on this gateway.", "503 before the upgrade", "`Retry-After`, `retryAfterMs`"},
	{LimitConnectionsPerUser, true, "Connections of one user in the cluster.", "the stalest is closed, 4502", "never by itself"},
	{LimitDeviceClasses, true, "Connections of one user for each `deviceClass`.", "the oldest is closed, 4502; or the newcomer: `conflict`, then 4502", "never by itself"},
	{LimitFrameRate, true, "Frames a second from one connection: each counts, also pings, pongs, heartbeats and what is refused.", "held until its turn has come", "by itself"},
	{LimitByteRate, true, "Bytes a second of these frames, with their headers.", "held up to 1 s, then `limited`", "`retryAfterMs`"},
	{LimitMessageRate, true, "Messages a second from one connection. What asks for much counts as several.", "held up to 1 s; what would wait longer: `limited`", "`retryAfterMs`"},
	{LimitNewAddresses, true, "Users and rooms an hour to which nobody has written yet and one user is the first to, on one gateway.", "`limited`, certainly not stored", "`retryAfterMs`"},
	{LimitRoomsPerConnection, true, "Rooms that one connection is in at a time.", "`limited`", "when it has left one"},
	{LimitWatchesPerConnection, true, "Users that one connection watches at a time.", "`limited`", "when it has unwatched some"},
	{LimitRefreshRate, false, "One token a second that is looked at, of `register` and `refresh`.", "`limited`", "`retryAfterMs`"},
	{LimitInFlight, true, "Messages of one connection without an ack.", "held until one is acknowledged", "by itself"},
	{LimitFrameBytes, true, "Bytes of one frame: `maxFrameBytes`.", "closed, 1009", "never"},
	{LimitOutboxBytes, true, "Bytes that wait for one client to read them.", "closed, 4001", "when it reads"},
	{LimitOutboxFrames, true, "Frames that wait for one client to read them.", "closed, 4001", "when it reads"},
	{LimitMeta, false, "1,024 bytes of `meta`.", "`too_large`", "never"},
	{LimitUsers, false, "10,000 names in `users`.", "`too_large`", "with fewer"},
}
