#!lua flags=allow-oom
-- Adds an entry to a stream. Returns 1 if it was added, 0 if it was added before, -1 if the key
-- holds another type.
-- KEYS: the stream; the hash of the last position of each stream; the hash of marks; `started`.
-- ARGV: the end of the transaction in decimal digits; the entry's number in it; about how many
-- entries to keep; for how many milliseconds the stream lives after the last write; the history
-- (empty: not the daemon's entry, so its position is not stored); the end of the transaction as 16
-- hexadecimal digits; the entry's mark (may be empty); `started` of the batch; then fields and
-- values.
-- An entry with a mark is identified by the mark alone, because its position is another when
-- another daemon sends it again. Once that daemon has begun, no other may add the entry.
-- Within one history, an entry that was added is never added again, even if it was deleted. After
-- positions went back (another history), ids go on after the stream's last id.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'stream' and kind ~= 'none' then
  return -1
end
local marked = ARGV[7] ~= ''
if marked and redis.call('GET', KEYS[4]) ~= ARGV[8] then
  return redis.error_reply('LOST the turn: another daemon is at work')
end
if marked and redis.pcall('HEXISTS', KEYS[3], ARGV[7]) == 1 then
  return 0
end
if ARGV[5] ~= '' and not marked then
  local seen = redis.pcall('HGET', KEYS[2], KEYS[1])
  if type(seen) ~= 'string' then
    if seen then
      redis.call('UNLINK', KEYS[2])
    end
    seen = ''
  end
  local history, hex, number = string.match(seen, '^(%S+) (%x+)-(%d+)$')
  if history == ARGV[5] and (hex > ARGV[6] or (hex == ARGV[6] and tonumber(number) >= tonumber(ARGV[2]))) then
    return 0
  end
end
local function add(id)
  return redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], id, unpack(ARGV, 9))
end
local added = add(ARGV[1] .. '-' .. (marked and '*' or ARGV[2]))
if type(added) == 'table' and added.err then
  local info, last = redis.pcall('XINFO', 'STREAM', KEYS[1]), nil
  if info.err then
    return redis.error_reply(added.err)
  end
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      last = info[i + 1]
    end
  end
  added = add(string.match(last, '^(%d+)') .. '-*')
  if type(added) == 'table' and added.err then
    return redis.error_reply(added.err)
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
if marked then
  redis.call('HSET', KEYS[3], ARGV[7], 1)
  redis.call('PEXPIRE', KEYS[3], ARGV[4])
elseif ARGV[5] ~= '' then
  redis.call('HSET', KEYS[2], KEYS[1], ARGV[5] .. ' ' .. ARGV[6] .. '-' .. ARGV[2])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
return 1
