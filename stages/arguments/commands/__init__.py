"""The arguments of SWIFT's seven commands, and of the flow from rows to a published model.

Each is made of the stages that the command runs, and `arguments.for_stage(TrainArguments)` gives one stage its part.
Take them from `stages.arguments`, which loads only the one that is asked for: making such a class takes 10 ms.
"""
