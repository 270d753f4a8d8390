#!lua flags=allow-oom
-- Sets KEYS[1] to ARGV[1].
redis.call('SET', KEYS[1], ARGV[1])
return 1
