#!lua flags=allow-oom
-- KEYS[1]: a stream. ARGV: about how many entries to keep, milliseconds until a stream that nobody writes goes, then
-- the fields and values of an entry.
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
