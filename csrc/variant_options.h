// Reads the options in a variant's name: "lstm;zoneout=0.1,0;use_peepholes=1".
#pragma once

#include <locale>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/variants/args.h"
#include "operands.h"

namespace fused_rnn {

// The numbers between commas; none where something else is among them. By the classic locale: in
// that of a program "0.5" may be 0 with something after it.
inline std::vector<double> numbers_of(const std::string& text) {
  std::vector<double> found;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    std::istringstream number(part);
    number.imbue(std::locale::classic());
    double value = 0;
    if (!(number >> value) || number.peek() != std::istringstream::traits_type::eof()) {
      return {};
    }
    found.push_back(value);
  }
  return found;
}

// Takes one option; false where there is none of this name and value for this cell.
inline bool take_option(VariantOptions& o, const std::string& key, const std::string& value) {
  const std::string hard = "hard_sigmoid,";
  if (key == "activation") {
    o.relu = value == "relu";
    return o.relu && (o.lstm() || o.gru());
  }
  if (key == "recurrent_activation") {
    const bool known = value.compare(0, hard.size(), hard) == 0;
    const auto n = known ? numbers_of(value.substr(hard.size())) : std::vector<double>();
    if (n.size() != 2 || !(o.lstm() || o.gru())) {
      return false;
    }
    o.hard = true, o.alpha = n[0], o.beta = n[1];
    return true;
  }
  const std::vector<double> n = numbers_of(value);
  if (n.size() != (key == "zoneout" ? 2 : 1)) {
    return false;
  }
  const double first = n[0];
  const auto probable = [](double p) { return p >= 0 && p < 1; };
  if (key == "recurrent_dropout") {
    o.dropout = first;
    return probable(first);
  }
  if (key == "zoneout") {
    o.zoneout_h = first, o.zoneout_c = n[1];
    return probable(first) && probable(n[1]);
  }
  if (key == "layer_norm") {
    o.norm = true, o.eps = first;
    return first > 0;
  }
  if (key == "num_heads") {
    o.heads = first >= 1 && first < 1e9 ? static_cast<int>(first) : 0;
    return o.heads > 0 && o.heads == first;
  }
  if (key == "reset_after") {
    o.reset_before = first == 0;
    return o.gru();
  }
  if (key == "use_peepholes") {
    o.peepholes = true;
  } else if (key == "input_forget") {
    o.coupled = true, o.gates = 3;
  } else if (key == "cell_clip") {
    o.cell_clip = first;
  } else if (key == "proj_clip") {
    o.proj_clip = first;
  } else {
    return false;
  }
  return o.lstm() && first > 0;
}

inline VariantOptions options_of(const std::string& name) {
  std::size_t end = name.find(';');
  const CellKind cell = checked_cell(name.substr(0, end));
  VariantOptions options(cell, static_cast<int>(gates_of(cell)));
  while (end != std::string::npos) {
    const std::size_t begin = end + 1;
    end = name.find(';', begin);
    const std::string option = name.substr(begin, end == std::string::npos ? end : end - begin);
    const std::size_t equals = option.find('=');
    STD_TORCH_CHECK(equals != std::string::npos &&
                        take_option(options, option.substr(0, equals), option.substr(equals + 1)),
                    "fused_rnn: cell should name options that there are, got ", name);
  }
  return options;
}

}  // namespace fused_rnn
