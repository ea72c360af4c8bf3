-- What the pool says of an instance: the properties of its dataset, of those below it, and of their snapshots.
-- Read-only; the result is { [name] = { [property] = value } }, every value a string.
local args = ...
local out = {}

local function get(name, properties)
    local found = {}
    for _, property in ipairs(properties) do
        local value = zfs.get_prop(name, property)
        if value ~= nil then
            found[property] = tostring(value)
        end
    end
    out[name] = found
    return found
end

if zfs.exists(args.name) then
    local own = get(args.name, { "readonly", "keystatus" })
    for property, value, source in zfs.list.user_properties(args.name) do
        if string.sub(property, 1, 7) == "tandem:" and source == args.name then
            own[property] = value
        end
    end
    local function snapshots(name)
        for snapshot in zfs.list.snapshots(name) do
            get(snapshot, { "guid", "createtxg", "userrefs", "defer_destroy" })
        end
    end
    snapshots(args.name)
    local content = { "referenced", "written", "receive_resume_token", "refquota", "quota", "keystatus" }
    for child in zfs.list.children(args.name) do
        if zfs.get_prop(child, "type") == "filesystem" then
            get(child, content)
        else
            out[child] = {}
        end
        snapshots(child)
        for below in zfs.list.children(child) do
            out[below] = {}
        end
    end
end
return out
