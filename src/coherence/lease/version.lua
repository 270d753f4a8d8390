-- KEYS: a version key, `started`. Returns the version; a missing one begins at `started`, from 16 hexadecimal
-- digits to decimal ones, digit by digit because Lua's numbers lose exactness above 2^53.
local held = redis.call('GET', KEYS[1])
if held then
  return held
end
local started = redis.call('GET', KEYS[2])
if not started then
  return false
end
local decimal = {0}
for digit in string.gmatch(started, '%x') do
  local carry = tonumber(digit, 16)
  for i = 1, #decimal do
    local value = decimal[i] * 16 + carry
    decimal[i] = value % 10
    carry = (value - value % 10) / 10
  end
  while carry > 0 do
    decimal[#decimal + 1] = carry % 10
    carry = (carry - carry % 10) / 10
  end
end
local version = string.reverse(table.concat(decimal))
redis.call('SET', KEYS[1], version)
return version
