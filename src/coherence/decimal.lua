-- Converts a position of 16 hexadecimal digits to decimal digits, digit by digit, because Lua's
-- numbers lose exactness above 2^53.
local function to_decimal(position)
  local decimal = {0}
  for digit in string.gmatch(position, '%x') do
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
  return string.reverse(table.concat(decimal))
end
