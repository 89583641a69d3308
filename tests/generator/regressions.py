"""Programs that broke a law once, as small as they could be made; the name says what was wrong."""

from __future__ import annotations

from tests.generator.program import Op, Program

REGRESSIONS: dict[str, Program] = {
    "a_norm_was_dropped_before_a_mean": Program((Op("norm", variant=2),)),
    "a_weight_standardized_by_hand_disagreed_with_itself": Program((Op("functional", variant=1),)),
    "a_parametrized_weight_was_in_no_group": Program((Op("functional", variant=3),)),
    "of_two_slices_one_was_repaired": Program((Op("split", size=3, variant=2),)),
    "axes_of_one_channel_were_not_tied": Program((Op("conv"), Op("chunk", size=1), Op("chunk", variant=1))),
    "one_layout_did_not_serve_every_plan": Program(
        (Op("shuffle", size=2), Op("conv"), Op("bottleneck", of=1), Op("transposed"), Op("transposed"))
    ),
    "rolled_channels_met_in_another_order": Program(
        (Op("concatenate"), Op("reorder", size=1, variant=1), Op("inverted"))
    ),
    "groups_of_a_literal_number_grew_unevenly": Program((Op("groups_apart"),)),
    "the_output_depended_on_the_input_alone": Program((Op("add"), Op("multiply", of=2)), "raw"),
}
"""What broke -> the program."""
