// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>
#include <laconic/core/enum.hpp>
#include <laconic/core/index_list.hpp>
#include <laconic/io/file.hpp>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

// Strict JSON, and configuration structs to and from it.
//
// A configuration struct lists its members once:
//   struct EncoderConfig {
//     Index d_model = 256;
//     Norm norm = Norm::layer;
//     static constexpr void fields(auto& self, auto&& visit) {
//       visit("d_model", self.d_model);
//       visit("norm", self.norm);
//     }
//   };
// Members are bool, integers, floating point, std::string, enumerations with names (core/enum.hpp), std::vector of
// these, IndexList, or further configuration structs. Reading throws where a member is missing, unless the struct says
// `static constexpr bool may_lack(std::string_view name)` and returns true for it: files of earlier versions load.

namespace laconic {
inline namespace LACONIC_ABI {

/// Requires a struct with a `fields` list, as described at the top of this file.
template <class T>
concept ConfigStruct = std::is_class_v<T> && requires(T& config) {
  T::fields(config, [](std::string_view, auto&) {});
};

namespace detail {

/// Returns text from a file, fit for a message: in quotes, cut at 60 characters, control characters and non-ASCII as
/// '?'.
inline std::string in_quotes(std::string_view word) {
  std::string out = "'";
  for (const char c : word.substr(0, 60)) out += c >= ' ' && c <= '~' ? c : '?';
  return out + (word.size() > 60 ? "...'" : "'");
}

/// Returns a value for a message: its JSON text, or the kind of an object or array.
inline std::string shown(const nlohmann::json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return text("an array of ", value.size());
  if (value.is_string()) return in_quotes(value.get_ref<const std::string&>());
  return value.dump();
}

/// Builds a value from the events of nlohmann's parser, and throws `Error` for duplicate keys and deep nesting. The
/// builder of nlohmann that takes a callback goes through all members of an object whenever a member that is an object
/// ends, so that a file with many of them keeps it busy for hours.
template <class Watch>
class StrictParse {
 public:
  using Json = nlohmann::json;                  ///< the value type of nlohmann
  using Event = Json::parse_event_t;            ///< the events of its parser
  static constexpr std::size_t max_depth = 32;  ///< max nesting of objects and arrays

  /// Reports every value to `watch`, and errors in the name of `where`. Both must outlive this object.
  StrictParse(const std::string& where, Watch& watch) : where_(where), watch_(watch) {}

  /// Takes null.
  bool null() { return put(nullptr); }
  /// Takes true or false.
  bool boolean(bool value) { return put(value); }
  /// Takes a negative integer.
  bool number_integer(Json::number_integer_t value) { return put(value); }
  /// Takes an integer of at least 0.
  bool number_unsigned(Json::number_unsigned_t value) { return put(value); }
  /// Takes a number with a fraction or an exponent.
  bool number_float(Json::number_float_t value, const std::string&) { return put(value); }
  /// Takes a string.
  bool string(std::string& value) { return put(std::move(value)); }
  /// Refuses binary data, which JSON does not have.
  bool binary(Json::binary_t&) { return false; }
  /// Opens an object.
  bool start_object(std::size_t) { return open(Json::object(), Event::object_start); }
  /// Closes an object.
  bool end_object() { return close(Event::object_end); }
  /// Opens an array.
  bool start_array(std::size_t) { return open(Json::array(), Event::array_start); }
  /// Closes an array.
  bool end_array() { return close(Event::array_end); }
  /// Takes the key of the next member. Throws `Error` if the object has it already.
  bool key(std::string& name) {
    const auto [member, is_new] = open_.back()->emplace(name, nullptr);
    require(is_new, where_, ": key ", in_quotes(name), " appears twice in one JSON object");
    member_ = &*member;
    Json word = std::move(name);
    watch_(depth(), Event::key, word);
    return true;
  }
  /// Throws `Error` with the place and reason that the parser gives.
  [[noreturn]] bool parse_error(std::size_t, const std::string&, const Json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 7: ..."
    std::string_view reason = error.what();
    if (const auto end = reason.find("] "); end != std::string_view::npos) reason.remove_prefix(end + 2);
    std::string out(reason.substr(0, 200));
    for (char& c : out) c = c >= ' ' && c <= '~' ? c : '?';
    throw Error(text(where_, ": not valid JSON: ", out));
  }

  Json root;  ///< the value, complete when the parser is done

 private:
  int depth() const { return static_cast<int>(open_.size()); }
  /// Puts a value where the parser stands: at the root, into the open array or under the last key.
  Json& place(Json value) {
    if (open_.empty()) return root = std::move(value);
    if (open_.back()->is_array()) return open_.back()->emplace_back(std::move(value));
    return *member_ = std::move(value);
  }
  bool put(Json value) {
    Json& placed = place(std::move(value));
    if (!watch_(depth(), Event::value, placed)) placed = nullptr;
    return true;
  }
  bool open(Json empty, Event event) {
    require(open_.size() < max_depth, where_, ": JSON nested more than ", max_depth, " deep");
    watch_(depth(), event, empty);
    open_.push_back(&place(std::move(empty)));
    return true;
  }
  bool close(Event event) {
    Json& whole = *open_.back();
    open_.pop_back();
    if (!watch_(depth(), event, whole)) whole = nullptr;
    return true;
  }

  const std::string& where_;
  Watch& watch_;
  std::vector<Json*> open_;  ///< arrays do not grow, and so do not move, while something in them is open
  Json* member_ = nullptr;
};

/// Parses strictly and calls `watch(depth, event, value)` as nlohmann::json::parse does its callback. If that returns
/// false, a complete value is replaced by null.
template <class Watch>
nlohmann::json parse_json(std::string_view source, const std::string& where, Watch&& watch) {
  // nlohmann's parser takes a zero byte for the end and would not see what follows.
  const std::size_t zero = source.find('\0');
  require(zero == std::string_view::npos, where, ": not valid JSON: a zero byte at byte ", zero);
  StrictParse strict(where, watch);
  nlohmann::json::sax_parse(source.begin(), source.end(), &strict);
  return std::move(strict.root);
}

}  // namespace detail

/// Returns one JSON value. Throws `Error`, naming `where` (a file, say) and the position, for anything that is not JSON
/// in valid UTF-8, for bytes after it, for a key that appears twice in one object and for nesting beyond 32.
inline nlohmann::json parse_json(std::string_view source, const std::string& where) {
  return detail::parse_json(source, where, [](int, nlohmann::json::parse_event_t, nlohmann::json&) { return true; });
}

/// Returns the value in a JSON file of at most `max_bytes`. Throws `Error` as `read_file` and `parse_json` do.
inline nlohmann::json read_json(const std::filesystem::path& path, std::size_t max_bytes = std::size_t{64} << 20) {
  return parse_json(read_file(path, max_bytes), path.string());
}

/// Returns a value as JSON text, of one line, or indented by so many spaces a level. Bytes that are not UTF-8 (names of
/// files may hold such) become U+FFFD, for they must not cost a result. Allocates.
inline std::string json_text(const nlohmann::json& value, int indent = -1) {
  return value.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
}

/// Says what is done with strings that are not UTF-8, which JSON cannot hold.
enum class NotUtf8 {
  replaced,  ///< U+FFFD stands for each wrong byte
  refused    ///< an error: for what is read again, such as tokens
};

/// Writes a JSON file, indented, whole or not at all. Throws `Error` for strings that are not UTF-8, if these are
/// refused.
inline void write_json(const std::filesystem::path& path, const nlohmann::json& value,
                       NotUtf8 strings = NotUtf8::replaced) {
  std::string out;
  try {
    out = strings == NotUtf8::replaced ? json_text(value, 2) : value.dump(2);
  } catch (const nlohmann::json::exception&) {
    throw Error(text(path.string(), ": cannot write as JSON: a string is not valid UTF-8"));
  }
  write_file(path, out + '\n');
}

namespace detail {

/// Names the position of a value in messages: "DIR/config.json: 'encoder.num_layers'".
struct JsonPlace {
  const std::string& where;  ///< the file
  std::string path;          ///< dotted names of the members above, empty for the whole

  /// Returns the position of a member.
  JsonPlace member(std::string_view name) const {
    return {where, path.empty() ? std::string(name) : text(path, '.', name)};
  }
  /// Returns the position of element i of an array.
  JsonPlace element(std::size_t i) const { return {where, text(path, '[', i, ']')}; }

  /// Throws `Error` for a value that is not what was expected here.
  [[noreturn]] void fail(const nlohmann::json& given, std::string_view expected) const {
    const std::string name = path.empty() ? std::string() : in_quotes(path) + " is ";
    throw Error(text(where, ": ", name, shown(given), path.empty() ? " given, " : ", ", expected, " expected"));
  }
};

/// Says whether a type is read from and written as an array.
template <class T>
inline constexpr bool is_vector = false;
/// Says that std::vector is read from and written as an array.
template <class T>
inline constexpr bool is_vector<std::vector<T>> = true;
/// Says that IndexList is read from and written as an array.
template <>
inline constexpr bool is_vector<IndexList> = true;

/// Returns a value of any type that configurations may hold. Throws `Error` for a value of another type.
template <class T>
T read_value(const nlohmann::json& value, const JsonPlace& place);

/// Returns an integer. Throws `Error` for one that T cannot hold.
template <std::integral T>
T read_integer(const nlohmann::json& value, const JsonPlace& place) {
  using Limits = std::numeric_limits<T>;
  // The checks come first: nlohmann's own get<T>() makes 18446744073709551615 of -1 and 0 of 2^64.
  const bool fits = value.is_number_unsigned()  ? std::in_range<T>(value.get<std::uint64_t>())
                    : value.is_number_integer() ? std::in_range<T>(value.get<std::int64_t>())
                                                : false;
  if (!fits) place.fail(value, text("an integer from ", Limits::min(), " to ", Limits::max()));
  return value.get<T>();
}

/// Returns a configuration struct. Throws `Error` for a missing key and for an unknown one.
template <ConfigStruct T>
T read_config(const nlohmann::json& value, const JsonPlace& place) {
  if (!value.is_object()) place.fail(value, "an object");
  T out{};
  std::unordered_set<std::string_view> known;
  std::string names;
  T::fields(out, [&](std::string_view name, auto& member) {
    known.insert(name);
    names += names.empty() ? "" : ", ";
    names += name;
    const auto found = value.find(name);
    if constexpr (requires { T::may_lack(name); }) {
      if (found == value.end() && T::may_lack(name)) return;
    }
    require(found != value.end(), place.where, ": ", in_quotes(place.member(name).path), " is missing");
    member = read_value<std::remove_reference_t<decltype(member)>>(*found, place.member(name));
  });
  for (const auto& [key, unused] : value.items())
    require(known.contains(key), place.where, ": unknown key ", in_quotes(place.member(key).path), " (known: ", names,
            ")");
  return out;
}

template <class T>
T read_value(const nlohmann::json& value, const JsonPlace& place) {
  if constexpr (std::same_as<T, bool>) {
    if (!value.is_boolean()) place.fail(value, "true or false");
    return value.get<bool>();
  } else if constexpr (std::integral<T>) {
    return read_integer<T>(value, place);
  } else if constexpr (std::floating_point<T>) {
    if (!value.is_number()) place.fail(value, "a number");
    const auto number = value.get<T>();
    if (!std::isfinite(number)) place.fail(value, text("a number up to ", std::numeric_limits<T>::max()));
    return number;
  } else if constexpr (std::same_as<T, std::string>) {
    if (!value.is_string()) place.fail(value, "a string");
    return value.get<std::string>();
  } else if constexpr (NamedEnum<T>) {
    const auto found = value.is_string() ? from_name<T>(value.get_ref<const std::string&>()) : std::nullopt;
    if (!found) place.fail(value, text("one of ", all_names<T>()));
    return *found;
  } else if constexpr (is_vector<T>) {
    if (!value.is_array()) place.fail(value, "an array");
    if constexpr (std::same_as<T, IndexList>)
      if (value.size() > IndexList::capacity) place.fail(value, text("an array of at most ", IndexList::capacity));
    T out;
    for (std::size_t i = 0; i < value.size(); ++i)
      out.push_back(read_value<typename T::value_type>(value[i], place.element(i)));
    return out;
  } else {
    static_assert(ConfigStruct<T>,
                  "laconic: a member of a configuration is bool, a number, std::string, an enumeration with "
                  "enum_names, a std::vector of these or a struct with fields");
    return read_config<T>(value, place);
  }
}

}  // namespace detail

/// Returns a configuration struct (or a number, string, vector ...) from JSON. Throws `Error`, naming `where` and the
/// member, for a missing key, an unknown key, a wrong type, an integer out of range and an unknown name of an
/// enumeration.
template <class T>
T json_value(const nlohmann::json& value, const std::string& where) {
  return detail::read_value<T>(value, {where, {}});
}

/// Returns the member `key` of an object, checked as by `json_value`.
template <class T>
T json_member(const nlohmann::json& object, std::string_view key, const std::string& where) {
  require(object.is_object(), where, ": ", detail::shown(object), " given, an object expected");
  const auto found = object.find(key);
  require(found != object.end(), where, ": ", detail::in_quotes(key), " is missing");
  return detail::read_value<T>(*found, {where, std::string(key)});
}

/// Returns a configuration struct (or a number, string, vector ...) as JSON. Throws `Error` for a number that is not
/// finite, which JSON cannot hold.
template <class T>
nlohmann::json to_json(const T& value) {
  if constexpr (NamedEnum<T>) {
    return std::string(to_name(value));
  } else if constexpr (detail::is_vector<T>) {
    nlohmann::json out = nlohmann::json::array();
    for (const auto& element : value) out.push_back(to_json<typename T::value_type>(element));
    return out;
  } else if constexpr (ConfigStruct<T>) {
    nlohmann::json out = nlohmann::json::object();
    T::fields(value, [&](std::string_view name, const auto& member) { out[std::string(name)] = to_json(member); });
    return out;
  } else {
    static_assert(
        std::is_arithmetic_v<T> || std::same_as<T, std::string>,
        "laconic: a member of a configuration is bool, a number, std::string, an enumeration with enum_names, "
        "a std::vector of these or a struct with fields");
    if constexpr (std::floating_point<T>) require(std::isfinite(value), "JSON cannot hold the number ", value);
    return value;
  }
}

}  // namespace LACONIC_ABI
}  // namespace laconic
